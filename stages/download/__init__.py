"""Stage `download`: the published files of the chosen data set, checked."""
