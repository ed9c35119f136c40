"""The policies that come with Elemta. They use :mod:`elemta.policy` as any plugin does.

They are found through ``twisted/plugins/elemta_policies.py``.
"""
