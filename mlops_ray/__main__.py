"""`python -m mlops_ray` is the command `mlops-ray`."""

from mlops_ray.cli import main

if __name__ == "__main__":
    main()
