"""Saves the pipeline as an MLflow model; runs in MLflow's environment: mlflow_model.py PIPELINE FOLDER."""

import sys

import joblib
import mlflow.sklearn

pipeline, folder = sys.argv[1:]
# Requirements given, so that MLflow infers none; it serves from this very environment.
mlflow.sklearn.save_model(
    joblib.load(pipeline), folder, pip_requirements=["scikit-learn"], serialization_format="cloudpickle"
)
