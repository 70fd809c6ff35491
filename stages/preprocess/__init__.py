"""Stage `preprocess`: decode, check, split, fit the normalization, pack."""
