"""The dashboard: what the state database says of a project as one JSON document, and the page that draws it."""
