"""Stage `weights`: the weights that training starts with, published ones or a file of your own."""
