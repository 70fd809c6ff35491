"""What every stage needs: parameters, paths, files, errors, records."""
