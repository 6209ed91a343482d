"""From a request to its text, for every engine: batching, jobs, sampling, constraints, detokenizing, tool calls.

Runner process. Knows engines by their interface only.
"""
