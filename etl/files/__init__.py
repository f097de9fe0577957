"""Which file? Rows become CSV or Parquet, in files that appear whole. It knows neither databases nor commands."""
