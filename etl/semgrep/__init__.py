"""Which request, and what does its answer mean? The only HTTP client, its pace, and what is believed of the API."""
