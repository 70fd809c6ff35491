"""The pipeline: one module a stage, and the shared rooms they are built from. Stages never import stages."""
