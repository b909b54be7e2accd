"""The markers of arms as SVG paths in a square from −1 to 1, for the page's charts and tables."""

from __future__ import annotations

MARKERS = {
    "o": "M.9,0A.9,.9,0,1,1,-.9,0A.9,.9,0,1,1,.9,0Z",
    "s": "M-.8,-.8H.8V.8H-.8Z",
    "D": "M0,-1L1,0L0,1L-1,0Z",
    "^": "M0,-.95L1,.8H-1Z",
    "v": "M0,.95L1,-.8H-1Z",
    "P": "M-.35,-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
    "*": "M0,-1L.28,-.38L.95,-.31L.45,.14L.59,.81L0,.47L-.59,.81L-.45,.14L-.95,-.31L-.28,-.38Z",
    "X": "M-.5,-1L0,-.5L.5,-1L1,-.5L.5,0L1,.5L.5,1L0,.5L-.5,1L-1,.5L-.5,0L-1,-.5Z",
    "h": "M0,-1L.87,-.5V.5L0,1L-.87,.5V-.5Z",
    "<": "M-.95,0L.8,-1V1Z",
    ">": "M.95,0L-.8,-1V1Z",
}
"""By the name that Matplotlib gives the marker; one for each that a presentation may choose."""
