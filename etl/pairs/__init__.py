"""Which line of the input? Pairs files of every form become pairs. It knows nothing of what is done with them."""
