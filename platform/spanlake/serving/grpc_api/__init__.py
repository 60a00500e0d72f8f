"""The API over gRPC. `tools/make_grpc.sh` writes extraction_pb2.py, extraction_pb2.pyi and extraction_pb2_grpc.py."""
