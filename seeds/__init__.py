"""One recipe with several seeds: the pipeline of seeds/dvc.yaml, its program, and reading what it recorded."""
