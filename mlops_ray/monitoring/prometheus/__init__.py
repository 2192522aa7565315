"""What Prometheus and Grafana are given: metrics, rules, and a dashboard."""
