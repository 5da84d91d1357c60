"""Search from coarse to fine on a CPU, beside scorers that look at every video.

corpus     synthetic videos and queries with a known answer
baselines  the scorers of X-CLIP and CLIP4Clip, and faiss
subjects   what is measured: each a search of the whole corpus
rounding   what patches in int8 cost in ranking
checks     agreement with plain formulas, without which no time is given
table      the table, and which targets are met
"""
