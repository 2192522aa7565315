"""From a dataset version to a judged, packaged, registered model version."""
