"""The page: a static site in which a model runs in the reader's own browser."""
