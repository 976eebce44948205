"""Factory files, settings and catalogue to validated ``domain`` values, with every problem at once.

``factory_file.load`` is the way in. Nothing here starts, stops or observes anything.
"""
