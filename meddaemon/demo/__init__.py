"""`meddaemon demo`: the main job on real anatomy, from a scanner stand-in to a PACS stand-in, on loopback."""

from meddaemon.demo.run import run_demo

__all__ = ["run_demo"]
