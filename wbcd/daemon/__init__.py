"""The daemon: channels joining threads, the order of the stages, and the service around them."""
