"""The left ventricle in a mask: contour, mitral plane, volumes, beats."""
