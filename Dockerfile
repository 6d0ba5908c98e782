# docker build -t echoplan .                                                                        (CPU)
# docker build -t echoplan --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 .         (CUDA 12.6)
# docker run --rm [--gpus all] -v "$PWD:/data" -e ECHOPLAN_ROOT=/data/echoplan echoplan predict -i /data/clips -o /data/out
FROM python:3.12-slim

# Which PyTorch: the CPU's is a tenth of the size.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 SAM2_BUILD_CUDA=0 ECHOPLAN_ROOT=/data/echoplan

# sam2 is built from source, and its build imports torch: without isolation it takes this one, and no second.
RUN pip install setuptools wheel && pip install --index-url "$TORCH_INDEX" torch torchvision \
 && pip install --no-build-isolation 'sam2>=1.1.0'
COPY . /opt/echoplan
RUN pip install '/opt/echoplan[dicom,onnx]' && rm -rf /opt/echoplan

WORKDIR /data
ENTRYPOINT ["echoplan"]
