"""The stack: PostgreSQL, MLflow, Ray and the service as processes of one machine."""
