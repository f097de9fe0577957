"""What happens next? The decisions of a run: lease, fetch, settle, walk, stop. It knows neither HTTP nor SQL."""
