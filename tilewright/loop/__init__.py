"""The loop IR: definition, print, parse, verify, interpret, simplify, bounds; lowering passes, one file each."""
from tilewright.loop import printer as printer  # so that repr of a node is its text, whichever file was imported first
