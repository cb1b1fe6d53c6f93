"""The demo, ``segmo demo``: a real video, a real processor and a real model class through SegMo.

clips       where the two real clips are
edit        the cut list that turns them into some minutes of video, written as an mp4
repeat      a file played over and over to any length
processor   a Qwen2.5-VL processor built without a model hub
model       a small Qwen2.5-VL with random weights
prefill     four ways to prefill, timed
tables      what is printed
picture     one picture of what was kept: ``strip`` draws the frames, ``panels`` the charts
style       colours of the picture, and how times are written
main        the whole demo
"""
