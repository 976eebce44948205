"""The tenant's API: files and batches, in OpenAI's wire format, behind the gateway's port."""
