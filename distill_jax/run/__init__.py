"""A config becomes finished stages: the plan, validation, costs, and the pipeline that trains."""
