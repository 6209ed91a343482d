"""The flags of ``python main.py moderate``. Imports nothing that the verb itself needs."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    parser.description = "Look at frames of a video, ask a vision model the policy's questions, and write what it says."
    parser.epilog = (
        "exit status: 0 allow, 3 review, 4 block; 1 if the video or the model failed, 2 for a mistake on "
        "the command line or in the policy"
    )
    parser.add_argument("video", help="the file, or - for standard input")
    parser.add_argument(
        "--policy",
        default="default",
        metavar="FILE",
        help="a policy's file, or its name in the folder of policies (default: default)",
    )
    parser.add_argument(
        "--url",
        help="the model's server, Switchyard or another with /v1/chat/completions (default: "
        "VLLM_URL, else the settings' one, and if nobody answers there one started "
        "for this run)",
    )
    parser.add_argument("--model", help="its name there (default: the first that sees)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where result.json and report.html go (default: NAME.moderation)"
    )
    parser.add_argument("--fps", type=float, default=1.0, help="frames a second to look at (default 1)")
    parser.add_argument(
        "--max-frames",
        type=int,
        default=50,
        metavar="N",
        help="but no more than these, spread over the whole video (default 50)",
    )
    parser.add_argument(
        "--longest-side", type=int, default=768, metavar="PIXELS", help="frames are scaled down to this (default 768)"
    )
    parser.add_argument("--concurrency", type=int, default=4, metavar="N", help="questions at a time (default 4)")
    parser.add_argument(
        "--patience",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="how long to ask again while the server is busy or gone (default 120)",
    )
