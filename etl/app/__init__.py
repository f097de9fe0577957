"""How is it wired? One run put together from the rooms below, and its record. It decides nothing about a pair."""
