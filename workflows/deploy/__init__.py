"""From the laptop to a cluster: the doctor, submitted jobs, Kubernetes files, the stack, the plan."""
