"""What production imports: the bundle of a release and the HTTP service that predicts with it; nothing else."""
