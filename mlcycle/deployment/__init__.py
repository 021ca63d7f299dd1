"""Stage 6: the release of an approved model, and the forms in which it is packaged: wheel, image, descriptors, installer.

Which deployments serve a release, and how their version is changed, is in `mlcycle.lifecycle`: deployments, records, status.
"""
