"""The methods: one file per paper or stage, pure torch. Values, not patches."""
