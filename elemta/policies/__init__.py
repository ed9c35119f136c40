"""The policies that come with Elemta, written against :mod:`elemta.policy` like anyone's.

They are found through ``twisted/plugins/elemta_policies.py``.
"""
