"""What a runner is as a process: its threads and memory, what its loads take, and mends for libraries.

Runner process and forkserver. Knows no requests.
"""
