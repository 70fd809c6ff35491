"""What a data set is: the published sets, the IDX format, packed splits, the data card."""
