"""From a video file and a question to an answer.

settings        what a run needs to know, beside the options of SegMo
checkpoint      a model with its processor, from a folder or the one that ships
prompt          the prompt of a question about a video that is encoded already
encode          a video through the vision encoder, some frames at a time
features        what is known of an encoded video, and its form on disk
rank_encode     a whole video through the vision encoder, its frames shared by the ranks
cache           tensors on disk by content hash, bounded in size, shared by processes
generate        prefill and decode, timed
context         what both ways from a file to features share
whole_video     all sampled frames, as one entry of the cache
plain_video     the processor's own inputs, for families that are not known further
file_index      what is known of a file without its pictures
frame_cache     features frame by frame
frame_features  features of single frames, from the cache or the encoder
chosen_frames   frames chosen by scene and question, each encoded once for all questions
ask             one question after another, the next video read while the current answer is computed
batch           many questions from a file of JSON lines, taken up again where a run ended
console         what is printed
"""
