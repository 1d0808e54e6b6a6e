from distbp.keys import *  # noqa
