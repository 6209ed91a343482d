"""How large media may be.

A value made once from the settings; used in the gateway and in the decoder process. Must not import the
settings at run time: the decoder starts without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.settings import Settings


@dataclass(frozen=True)
class MediaLimits:
    """Limits on the media of one request.

    :ivar max_items: images, clips and videos in one request.
    :ivar max_bytes: encoded bytes of all items together.
    :ivar max_pixels: pixels of an image or of one video frame.
    :ivar max_audio_seconds: length of an audio clip.
    :ivar max_video_seconds: length of a video.
    :ivar video_frames: frames sampled from a video when the request does not say.
    :ivar max_video_frames: the most frames that a request may ask for.
    :ivar timeout: seconds that decoding one request's media may take.
    :ivar memory: bytes that the decoder process may use.
    :ivar urls: whether media may be named by URL.
    :ivar url_timeout: seconds that fetching one URL may take, redirects and all.
    """

    max_items: int
    max_bytes: int
    max_pixels: int
    max_audio_seconds: float
    max_video_seconds: float
    video_frames: int
    max_video_frames: int
    timeout: float
    memory: int
    urls: bool = False
    url_timeout: float = 20.0

    @classmethod
    def from_settings(cls, settings: Settings) -> MediaLimits:
        """Return the limits that the gateway's settings name."""
        return cls(
            max_items=settings.max_media_items,
            max_bytes=settings.max_body,
            max_pixels=settings.max_pixels,
            max_audio_seconds=settings.max_audio_seconds,
            max_video_seconds=settings.max_video_seconds,
            video_frames=settings.video_frames,
            max_video_frames=settings.max_video_frames,
            timeout=settings.decode_timeout,
            memory=settings.decode_memory,
            urls=settings.media_urls,
            url_timeout=settings.url_timeout,
        )
