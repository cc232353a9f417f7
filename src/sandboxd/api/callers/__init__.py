"""Who calls: bearer tokens and client certificates, checked against what the issuers publish. Knows no gRPC."""
