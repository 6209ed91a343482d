"""The runner as a process: threads and memory, measurements of a load, workarounds for libraries.

Runner process and forkserver. Knows no requests.
"""
