"""From the laptop to a cluster: `submit` sends jobs, `kubernetes` writes manifests, `plan` computes hours and costs."""
