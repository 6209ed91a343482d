"""A file of sound or video: opened with PyAV, measured, entered at a time and decoded. The one way to do so here.

FFmpeg by itself guesses the format (playlists that name other files among them) and tries any codec that it has. Here
it gets the demuxer that was sniffed, the codecs listed below and no protocol: the file's bytes come from an open file,
or piece by piece from another process. Lengths in headers are claims; the packets tell how long a file really is.

Damage: a strict container refuses a file that ends early, or of which more than a few packets do not decode. Another
one decodes what is there and counts the rest (``missing``, ``bad``).

Runs in decoder processes only. Must not know which frames are wanted, nor what becomes of them.
"""

import errno
import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from io import BufferedReader
from mmap import ACCESS_READ, mmap
from typing import Any, Self, cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from media.decoder.completeness import Bytes, missing_bytes
from media.decoder.remote_file import Remote, RemoteSeekable, Window
from media.errors import MediaError, too_large, undecodable, unsupported
from media.limits import MediaLimits
from media.messages import Medium

av.logging.set_level(None)

_DEMUXERS = {
    "ASF": "asf",
    "AVI": "avi",
    "FLAC": "flac",
    "FLV": "flv",
    "GIF": "gif",
    "M4A": "mov",
    "MATROSKA": "matroska",
    "MOV": "mov",
    "MP3": "mp3",
    "MP4": "mov",
    "MPEG": "mpeg",
    "MPEGTS": "mpegts",
    "OGG": "ogg",
    "OGV": "ogg",
    "WAV": "wav",
    "WEBM": "matroska",
}
AUDIO_CODECS = (
    "aac ac3 adpcm_ima_wav adpcm_ms alac eac3 flac gsm_ms libopus libvorbis mp2 mp2float mp3 mp3float opus pcm_alaw "
    "pcm_f32be pcm_f32le pcm_f64be pcm_f64le pcm_mulaw pcm_s16be pcm_s16le pcm_s24be pcm_s24le pcm_s32be pcm_s32le "
    "pcm_s8 pcm_u8 vorbis"
).split()
VIDEO_CODECS = (
    "av1 cinepak dnxhd dvvideo ffv1 flv gif h263 h263p h264 hevc huffyuv libaom-av1 libdav1d libvpx libvpx-vp9 mjpeg "
    "mpeg1video mpeg2video mpeg4 mpegvideo msmpeg4 msmpeg4v1 msmpeg4v2 png prores qtrle rawvideo theora vc1 vp8 vp9 "
    "wmv1 wmv2 wmv3"
).split()
_THREADS = min(4, os.cpu_count() or 1)
_BUFFER = 64 * 2**10  # bytes of one read of the file
_STILL = Disposition.attached_pic | Disposition.timed_thumbnails
_MOST_RATE = 240  # packets for each second of the longest video; the times of more would fill the memory
_MOST_PACKETS = 20_000_000
_BAD_PACKETS = 2_000  # after which a container that is not strict gives up
_STUCK = 4  # frames in a row whose times do not grow

Source = BufferedReader | Remote
Timed = tuple[float, VideoFrame]
"""A frame, and its seconds since the video's beginning."""


class Untimed(Exception):
    """Frames carry no times, or times that do not grow."""


def file_bytes(file: BufferedReader | RemoteSeekable) -> Bytes:
    """Return a file's bytes, which are read when they are looked at."""
    if isinstance(file, RemoteSeekable):
        return cast(mmap, Window(file))
    return mmap(file.fileno(), 0, access=ACCESS_READ)


def check_seconds(medium: Medium, seconds: float, limit: float, words: str = "lasts at least") -> None:
    """:raises MediaError: 413 if ``seconds`` are more than ``limit``."""
    if seconds > limit:
        raise too_large(medium.field, f"the {medium.kind} {words}", f"{seconds:.1f} s", f"{limit:g} s")


class Container:
    """One file, of which one stream is decoded.

    :ivar stream: the stream, once :meth:`use_stream` has chosen it.
    :ivar ends_early: how many bytes are missing at the end, in words; "" if none are, or if nothing tells.
    :ivar bad: packets that did not decode so far.
    :ivar heard: how far the packets of other streams went so far, in seconds.
    """

    stream: VideoStream | AudioStream

    def __init__(
        self, file: Source, medium: Medium, limits: MediaLimits, codecs: list[str], strict: bool = True
    ) -> None:
        """Open ``file``, which the caller closes.

        :raises MediaError: 400 if it ends early, when ``strict`` or when it cannot be opened because of that.
        :raises av.FFmpegError: if FFmpeg cannot read it as what it was sniffed to be.
        """
        self._file, self._medium, self._limits, self._codecs, self._strict = file, medium, limits, codecs, strict
        self.can_seek = isinstance(file, BufferedReader | RemoteSeekable)
        self.bad = 0
        self.heard = 0.0
        self.ends_early = self._missing_end()
        if strict and self.ends_early:
            raise self.refused(f"it {self.ends_early}")
        try:
            self._container = self._open()
        except av.FFmpegError:
            if self.ends_early:
                raise self.refused(f"it {self.ends_early}, and with them what tells where its frames are") from None
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _open(self) -> InputContainer:
        options = {"protocol_whitelist": "none", "codec_whitelist": ",".join(self._codecs), "max_streams": "64"}
        opened = av.open(
            self._file,
            format=_DEMUXERS[self._medium.format],
            options=options,
            metadata_errors="ignore",
            buffer_size=_BUFFER,
        )
        return cast(InputContainer, opened)

    def _missing_end(self) -> str:
        if not isinstance(self._file, BufferedReader | RemoteSeekable):
            return ""
        data = file_bytes(self._file)
        try:
            missing = missing_bytes(data, self._medium.format)
        except (LookupError, ValueError):  # too many parts to look at from afar
            return ""
        return f"ends early: {missing} of {len(data) + missing} bytes are missing" if missing else ""

    # -- streams -------------------------------------------------------------------------------------------------------

    @property
    def audio_streams(self) -> tuple[AudioStream, ...]:
        """The streams of sound."""
        return self._container.streams.audio

    @property
    def moving_streams(self) -> list[VideoStream]:
        """The streams of moving pictures: no covers, no thumbnails."""
        return [stream for stream in self._container.streams.video if not stream.disposition & _STILL]

    def use_stream(self, stream: AudioStream | VideoStream) -> None:
        """Decode this one from now on. :raises MediaError: 415 if its codec is not among those that are allowed."""
        codec = stream.codec_context.name if stream.codec_context else "unknown"
        if codec not in self._codecs:
            raise unsupported(self._medium.field, self._medium.looks_like, f"its codec {codec!r} is not supported")
        stream.codec_context.thread_count = _THREADS
        stream.codec_context.thread_type = "AUTO"
        self.stream = stream

    @property
    def claimed(self) -> float:
        """The seconds that the header claims of the stream, or else of the whole file; 0 if it claims none."""
        if self.stream.duration is not None and self.stream.duration > 0 and self.stream.time_base is not None:
            return float(self.stream.duration * self.stream.time_base)
        return max(0.0, float((self._container.duration or 0) / av.time_base))

    # -- packets and frames --------------------------------------------------------------------------------------------

    def reopen(self) -> None:
        """Go back to the beginning."""
        index = self.stream.index
        self._container.close()
        assert isinstance(self._file, BufferedReader | RemoteSeekable)
        self._file.seek(0)
        self._container = self._open()
        self.use_stream(cast(VideoStream | AudioStream, self._container.streams[index]))

    def read_packets(self) -> Iterator[av.Packet]:
        """Yield the stream's packets from here on, and note how far the other streams' go."""
        for packet in self._container.demux():
            if packet.stream.index != self.stream.index:
                if packet.pts is not None and packet.time_base is not None:
                    end = packet.pts + (packet.duration or 0) - (packet.stream.start_time or 0)
                    self.heard = max(self.heard, float(end * packet.time_base))
            elif packet.size:
                yield packet

    def decode_frames(self) -> Iterator[Any]:
        """Yield the stream's frames from here on, in the order of their presentation. Packets that do not decode are
        passed over, as players do.

        :raises MediaError: 400 if they are too many, when strict.
        :raises av.FFmpegError: if the file cannot be read on, when strict.
        """
        context, packets = self.stream.codec_context, self.read_packets()
        good = bad = 0
        while True:
            packet = self._next_packet(packets)
            good += 1
            try:
                found = context.decode(packet)  # None: the frames that the decoder still holds
            except av.error.EOFError:
                return
            except av.FFmpegError as error:
                if self._strict and not isinstance(error, av.error.InvalidDataError):
                    raise
                if error.errno in (errno.ENOMEM, errno.EAGAIN):
                    raise
                bad, self.bad = bad + 1, self.bad + 1
                if self._strict and bad > 3 + good // 10:
                    raise self.damaged() from None
                if packet is None or bad > _BAD_PACKETS:
                    return
                continue
            yield from found
            if packet is None:
                return

    def _next_packet(self, packets: Iterator[av.Packet]) -> av.Packet | None:
        """Return the next packet; None at the end, and where the file cannot be read on unless that is strict."""
        try:
            return next(packets, None)
        except av.FFmpegError as error:
            if self._strict or error.errno in (errno.ENOMEM, errno.EAGAIN):
                raise
            self.bad += not isinstance(error, av.error.EOFError)
            return None

    # -- limits and refusals -------------------------------------------------------------------------------------------

    def check_pixels(self, width: int, height: int) -> None:
        """:raises MediaError: 413 if a frame has more pixels than ``limits.max_pixels``."""
        if width * height > self._limits.max_pixels:
            value = f"{width} × {height} = {width * height} pixels"
            raise too_large(self._medium.field, "a frame has", value, f"{self._limits.max_pixels} pixels")

    def refused(self, reason: str) -> MediaError:
        """Return the 400 that gives this reason."""
        return undecodable(self._medium.field, self._medium.looks_like, reason)

    def damaged(self) -> MediaError:
        """Return the 400 for a file of which too little could be decoded."""
        return self.refused("it is damaged")


class VideoTrack(Container):
    """The track of a video that players show: the one that is flagged as the default, else the first.

    :ivar beside: how many more tracks of moving pictures there are.
    :ivar late: tells that the time for this video is over.
    """

    stream: VideoStream

    def __init__(
        self,
        file: Source,
        medium: Medium,
        limits: MediaLimits,
        strict: bool = True,
        late: Callable[[], bool] = lambda: False,
    ) -> None:
        """:raises MediaError: as :class:`Container`, and 400 if there is no video, 413 past a limit by the header."""
        super().__init__(file, medium, limits, VIDEO_CODECS, strict)
        self.late = late
        moving = self.moving_streams
        if not moving:
            raise self.refused("there is no video in it")
        self.beside = len(moving) - 1
        self.use_stream(next((one for one in moving if one.disposition & Disposition.default), moving[0]))
        self.check_pixels(self.stream.codec_context.width, self.stream.codec_context.height)
        self._base: Fraction = self.stream.time_base or Fraction(1, 25)
        self._first = self.stream.start_time or 0
        self.check_length(self.claimed)

    @property
    def rate(self) -> float:
        """Frames per second by the header."""
        rate = self.stream.average_rate or self.stream.guessed_rate or 25
        return float(rate) if 0 < rate <= 1000 else 25.0

    @property
    def aspect(self) -> Fraction:
        """A pixel's width by its height."""
        aspect = self.stream.sample_aspect_ratio or Fraction(1)
        return aspect if Fraction(1, 8) <= aspect <= 8 else Fraction(1)

    def check_length(self, seconds: float) -> None:
        """:raises MediaError: 413 if ``seconds`` are more than ``limits.max_video_seconds``."""
        check_seconds(self._medium, seconds, self._limits.max_video_seconds, "lasts")

    def read_times(self) -> tuple[list[float], float, bool]:
        """Read all packets, decoding none. Return the seconds at which frames are shown, in order; the frames per
        second; and whether frames carry these times. Where they do not, the times follow from their number.

        :raises MediaError: 400 if there are no frames, 413 if they are more than the longest video has.
        """
        most = int(self._limits.max_video_seconds * _MOST_RATE) + 1000
        timed = self._medium.format != "AVI"  # which keeps no times of presentation
        stamps: list[int] = []
        for packet in self.read_packets():
            if not packet.is_discard:
                timed &= packet.pts is not None
                stamps.append(packet.pts or 0)
            if len(stamps) > most:
                raise too_large(self._medium.field, "the video has at least", f"{len(stamps)} frames", f"{most} frames")
        if not stamps:
            raise self.refused("there are no frames in it")
        stamps.sort()
        span = float((stamps[-1] - stamps[0]) * self._base)
        if not timed or span <= 0:
            return [number / self.rate for number in range(len(stamps))], self.rate, False
        self._first = stamps[0]
        return [self._seconds(stamp) for stamp in stamps], (len(stamps) - 1) / span, True

    def find_length(self) -> tuple[float, str]:
        """Return how many seconds the video lasts by its last packets, and what told so. 0 if nothing does.

        Only the end is read, where the file can be entered there.
        """
        if self.claimed and not self.ends_early:
            try:
                self.seek_key_frame(self.claimed)
                if end := self._last_end():
                    self.reopen()
                    return end, "its last frames"
            except av.FFmpegError:
                pass
        self.reopen()
        end = self._last_end()
        self.reopen()
        return end, "reading it to its end"

    def _last_end(self) -> float:
        last = None
        try:
            for count, packet in enumerate(self.read_packets()):
                stamp = packet.pts if packet.pts is not None else packet.dts
                if stamp is not None and not packet.is_discard:
                    end = stamp + (packet.duration or 0)
                    last = end if last is None else max(last, end)
                if count >= _MOST_PACKETS or (count % 1000 == 0 and self.late()):
                    break
        except av.FFmpegError:
            pass  # damaged there; what came before counts
        return max(0.0, self._seconds(last)) if last is not None else 0.0

    def _seconds(self, stamp: int) -> float:
        return float((stamp - self._first) * self._base)

    def seek_key_frame(self, seconds: float) -> None:
        """Go to the key frame at or before a time. :raises av.FFmpegError: if that does not work."""
        self._container.seek(self._first + int(seconds / self._base), stream=self.stream, backward=True)

    def timed_frames(self, counted: bool = False) -> Iterator[Timed]:
        """Yield frames with their seconds since the beginning, from where the container stands.

        :param counted: take the time from the frames' number and the rate where they carry none.
        :raises Untimed: if they carry none, without ``counted``.
        """
        last, stuck = -math.inf, 0
        for number, frame in enumerate(self.intact_frames()):
            stamp = frame.pts if frame.pts is not None else frame.dts
            time = self._seconds(stamp) if stamp is not None else -math.inf
            stuck = stuck + 1 if time <= last else 0
            if stuck >= _STUCK and not counted:
                raise Untimed
            if counted and (stuck or time == -math.inf):
                time = max(last, number / self.rate)
            if time > last or counted:
                last = max(last, time)
                yield max(0.0, time), frame

    def intact_frames(self) -> Iterator[VideoFrame]:
        """Yield the frames that are not marked as corrupt."""
        return (frame for frame in self.decode_frames() if not frame.is_corrupt)
