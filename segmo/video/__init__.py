"""A video as frames, times and scenes, in memory that does not grow with the file's length.

clip      what is read: sampled frames, their times, the scenes
given     what a caller hands in, as a source that can be read
source    opening a file, and what is wrong with one that cannot be read
download  a file at an address
pictures  a folder, a list or an array of pictures
objects   decoders of other libraries
packets   what a file's packets say, and the frames that come out of them
clock     times that only go forward
times     when each frame is shown and where decoding can start
index     the same of a file, from its packets
decode    frames in the order of time, from a point in the file
pixels    a decoded frame as an array, as a player shows it
tone      HDR in standard range
sample    the frame that is shown at every multiple of 1 / fps seconds
glance    a quick look at a decoded frame
compare   how much each frame differs from the one before
scenes    PySceneDetect's AdaptiveDetector, fed while decoding goes on
chunk     one stretch of a file: frames sampled, neighbours compared
read      a whole file, long ones in several chunks at a time
fetch     single frames, by seeking
"""

from segmo.video.clip import Clip
from segmo.video.fetch import fetch
from segmo.video.read import read
from segmo.video.scenes import SceneOptions

__all__ = ["Clip", "SceneOptions", "fetch", "read"]
