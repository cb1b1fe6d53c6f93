"""SceneQA: videos made of scenes, questions about single scenes, and what a small trained Video LLM answers.

glyphs       digits people wrote, and shapes
backgrounds  coloured textures, each with a name of two words
script       what happens in a video: scenes, digits, flashes
render       the pixels of a script
questions    the question kinds and their answers
files        videos as mp4 files
task         splits, difficulty, version and checksum
"""
