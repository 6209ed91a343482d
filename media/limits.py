"""How large media may be.

A value made once from the settings; used in the gateway and in decoder processes, which start without the settings.
"""

from dataclasses import dataclass


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
