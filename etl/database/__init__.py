"""Which dialect? Connections, types, the schema and its versions. It knows the tables, but no verb of theirs."""
