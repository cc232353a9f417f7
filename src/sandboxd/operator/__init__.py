"""The operator: converges the resources of `sandboxd.dev` into StatefulSets, Secrets, policies and volumes."""
