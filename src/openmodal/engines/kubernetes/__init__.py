"""Kubernetes: each sandbox is a pod with the agent in it."""

from openmodal.engines.kubernetes.engine import Kubernetes

__all__ = ["Kubernetes"]
