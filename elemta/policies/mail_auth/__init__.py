"""SPF, DKIM, ARC and DMARC. The libraries are imported only where a policy needs them."""
